"""`darkarc serve`: a page on which lens files are dropped and answered.

The process that talks to the network never opens an uploaded file: a worker without the right to write,
with a limit on its memory and a time after which it is ended, reads it and answers.
"""

from darkarc.serving.web.server import run_page
from darkarc.serving.web.settings import PageServer, ServeError, read_token

__all__ = ["PageServer", "ServeError", "read_token", "run_page"]

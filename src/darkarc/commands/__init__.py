"""One function a verb of the command line, thin; `darkarc.cli` runs them."""

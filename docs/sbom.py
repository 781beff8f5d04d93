"""A software bill of materials of requirements.lock, CycloneDX as JSON: `python docs/sbom.py > sbom.json`.

Every locked package with its version, SHA-256 of each of its files, and its licence where it is installed.
The same lock in the same environment gives the same bytes: no serial number, no time.
"""

import json
import re
import sys
from importlib import metadata
from pathlib import Path

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

sys.path.insert(0, str(Path(__file__).parent))
import licences


def bill() -> Bom:
    found = Bom()
    for name, version, hashes in locked():
        reference = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(f"pkg:pypi/{name}@{version}"),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in hashes],
        )
        try:
            licence = licences.licence(name)
        except metadata.PackageNotFoundError:
            licence = ""  # of another platform
        found.components.add(
            Component(
                type=ComponentType.LIBRARY,
                name=name,
                version=version,
                bom_ref=f"{name}=={version}",
                purl=PackageURL("pypi", name=name, version=version),
                licenses=[DisjunctiveLicense(name=licence)] if licence else [],
                external_references=[reference],
            )
        )
    return found


def locked() -> list[tuple[str, str, list[str]]]:
    """Name, version and SHA-256 of the files of each package; of a version a row, where platforms differ."""
    text = (licences.PROJECT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)
    found = []
    for entry in entries:
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", entry):
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
            found.append((licences.plain(match[1]), match[2], hashes))
    return found


def main() -> None:
    content = bill()
    text = make_outputter(content, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    tree = json.loads(text)
    # Both are optional in the format, and would make every file another.
    del tree["serialNumber"], tree["metadata"]["timestamp"]
    print(json.dumps(tree, indent=2))


if __name__ == "__main__":
    main()

"""Pack the answers of folders in results/ into their generations.zip, which is committed:

python benchmarks/pack.py results/speed results/reproduce
"""

import sys
import zipfile
from pathlib import Path

from ulskip_cli.core.files import replacing
from ulskip_cli.experiments.results import ResultsFolder


def pack(folder: ResultsFolder) -> None:
    """Write the archive of the answers of all rows; equal answers give equal archives."""
    with (
        replacing(folder.path / "generations.zip") as staging,
        zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for record in sorted(folder.records(), key=lambda record: record.id):
            file = folder.stored_generations(record.id)
            if file.is_file():
                entry = zipfile.ZipInfo(file.name)  # of the year 1980
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        pack(ResultsFolder(path))

"""What compressed pieces of a file unpack to, counted before a library believes what they say."""

import math
import zlib
from pathlib import Path
from typing import Any

from darkarc.data._npy import BadFile

MAX_DEFLATE = 1032
"""Times that a byte may unpack to in deflate's format (RFC 1951: 258 bytes in two bits)."""
FREE_BYTES = 64 * 2**20
"""What one piece may take in any case: smaller ones are not counted."""
SLACK = 2**16

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # HDF5's numbers of filters


def unpacks_beyond(piece: bytes, most: int) -> bool:
    """Whether zlib or gzip streams, one after the other, unpack to more than `most` bytes; none are kept."""
    n = 0
    while piece:
        stream = zlib.decompressobj(wbits=47)  # either format
        while piece and not stream.eof:
            try:
                n += len(stream.decompress(piece, 2**20))
            except zlib.error:
                return False  # damaged, or something else behind the last stream
            piece = stream.unconsumed_tail
            if n > most:
                return True
        piece = stream.unused_data.lstrip(b"\0")  # gzip allows padding between its streams
    return False


def check_chunks(path: Path, data: Any) -> None:
    """Raise `BadFile` for an HDF5 data set of which a chunk unpacks to more than its shape."""
    filters = data.id.get_create_plist()
    codes = [filters.get_filter(k)[0] for k in range(filters.get_nfilters())]
    packers = [code for code in codes if code not in (_SHUFFLE, _FLETCHER32)]
    if not packers or data.chunks is None:
        return
    if len(packers) > 1:
        raise BadFile(path, f"{data.name} is compressed more than once")
    most = math.prod(data.chunks) * data.dtype.itemsize + SLACK
    large: list[tuple[int, ...]] = []

    def look(chunk: Any) -> None:
        if chunk.size * MAX_DEFLATE > FREE_BYTES:
            large.append(chunk.chunk_offset)

    data.id.chunk_iter(look)
    for offset in large:
        _, piece = data.id.read_direct_chunk(offset)
        if packers[0] != _DEFLATE and len(piece) > most:
            raise BadFile(path, f"{data.name} has a compressed piece that is larger than its pixels")
        if packers[0] == _DEFLATE and unpacks_beyond(piece, most):
            raise BadFile(path, f"{data.name} has a piece that unpacks to more than its {most - SLACK} bytes")


def check_tiles(path: Path, file: Any) -> None:
    """Raise `BadFile` for a FITS file of which a compressed tile unpacks to more than its pixels."""
    from astropy.io import fits

    file.seek(0)
    for unit in fits.open(file, memmap=False, disable_image_compression=True):
        if not unit.header.get("ZIMAGE"):
            continue
        header = unit.header
        across = header.get("ZTILE1", header.get("ZNAXIS1", 1))  # a tile is a row unless the header says more
        sides = [across, *(header.get(f"ZTILE{k}", 1) for k in range(2, 1 + header.get("ZNAXIS", 0)))]
        most = 8 * math.prod(sides) + SLACK
        for name in ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA"):
            if name not in unit.columns.names:
                continue
            for tile in unit.data[name]:
                piece = tile.tobytes()
                if len(piece) * MAX_DEFLATE > FREE_BYTES and unpacks_beyond(piece, most):
                    raise BadFile(path, f"a tile of it unpacks to more than its {most - SLACK} bytes")

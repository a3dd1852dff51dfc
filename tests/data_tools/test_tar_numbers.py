"""Numbers of tar headers, in the forms in which writers put them."""

import io
import tarfile

import pytest

from data_tools.formats.tar import BLOCK, sample_members


@pytest.mark.parametrize("field", [b"%011o\0", b"%011o ", b"%012o", b"%11o "])
def test_sizes_of_eleven_and_of_twelve_digits_are_read(field):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 100
        archive.addfile(member, io.BytesIO(b"x" * 100))
    header = bytearray(made.getvalue()[:BLOCK])
    header[124:136], header[148:156] = field % 100, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert len(sample_members(bytes(header) + b"x" * 100 + bytes(BLOCK - 100))[1]["txt"]) == 100

"""How much memory this process has in use, to the byte: engines do not say what a grammar holds.

address space    too coarse: freed memory stays in it, and is used again unseen
mallinfo2        what C, C++ and Rust have allocated and not freed; 3 us (glibc 2.33 and later)
"""

import ctypes
import resource
from pathlib import Path

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _MallInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS.split())


def bytes_in_use() -> int:
    """Bytes allocated and not freed; where the allocator cannot tell, the address space."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return address_space()
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def address_space() -> int:
    """Bytes of the process's address space."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()

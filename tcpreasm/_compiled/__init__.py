"""The compiled core: the same names as `_pure`, and the same behaviour, only faster."""

from .assembler import AssemblerBase
from .connection import Connection
from .conversation import Conversation, Side
from .decode import decode_frame
from .files import FilePool, FileStream, FlowPaths, flow_name
from .pages import PAGE_BYTES, Page, PageCache, PageList
from .pool import ConversationPoolBase, StreamPoolBase
from .reassembly import Reassembly
from .records import PcapngRecords, PcapRecords
from .sequence import INVALID_SEQUENCE, Sequence, byte_span
from .shards import MAX_THREADS, Shards
from .streams import ByteCountStream, BytesStream, DigestStream, SpanStream

__all__ = [
    "INVALID_SEQUENCE",
    "MAX_THREADS",
    "PAGE_BYTES",
    "AssemblerBase",
    "ByteCountStream",
    "BytesStream",
    "Connection",
    "Conversation",
    "ConversationPoolBase",
    "DigestStream",
    "FilePool",
    "FileStream",
    "FlowPaths",
    "Page",
    "PageCache",
    "PageList",
    "PcapRecords",
    "PcapngRecords",
    "Reassembly",
    "Sequence",
    "Shards",
    "Side",
    "SpanStream",
    "StreamPoolBase",
    "byte_span",
    "decode_frame",
    "flow_name",
]

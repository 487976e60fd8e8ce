"""Where models come from and go to: stdin, stdout and files.

framing   how a file says where its head ends and how long it is
source    what is read: a file, a pipe, bytes in memory
copying   bytes from one descriptor to another, in the kernel where it can
output    what is written appears when it is complete
"""

from o2o.streams.output import open_output
from o2o.streams.source import FileSource, MemorySource, Source, open_file, open_source

__all__ = ["FileSource", "MemorySource", "Source", "open_file", "open_output", "open_source"]

"""Where bytes are read from and written to: disks, servers, object stores, and the cache between them."""

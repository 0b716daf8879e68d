"""C++ versions of all operations, built once by the machine's own compiler."""

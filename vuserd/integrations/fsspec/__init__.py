"""The file system of fsspec: ``vuserd://EXPORT/PATH``, read-only."""

"""Files that pass between stages: artifacts with their checksums, and hashes of input files.

An artifact is a folder `<readable name>-<8 hex digits of the fingerprint>`. Its `manifest.json` holds the fields that
the fingerprint covers, and the size and checksum of every file. While an artifact is made, its folder is called
`<name>.partial`. The folder is renamed when everything is on the disk.
"""

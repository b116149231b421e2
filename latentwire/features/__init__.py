"""Optional parts of a receiver, each a folder with one life cycle, behind one registry."""

"""The mapping language of `object_mapper`: paths, transforms, lookup tables, and the compiler that turns a
declaration into closures."""

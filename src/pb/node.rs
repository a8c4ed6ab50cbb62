//! Text as a tree that remembers lines and how scalars were written.

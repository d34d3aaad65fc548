//! What runs inside a machine: the envd API, its processes and files.

"""The locked-in child process that opens untrusted files, and opening regular files safely."""

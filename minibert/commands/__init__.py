"""The commands of `minibert`, one file each."""

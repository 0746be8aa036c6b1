"""The services of semipd.v1, one file each."""

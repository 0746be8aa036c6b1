"""The command line. A command's own file declares its options; what is slow to import comes when it runs."""

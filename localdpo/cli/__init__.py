"""The command line. One file a verb; what a verb needs is imported when it runs, so that --help is quick."""

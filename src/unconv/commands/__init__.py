"""The verbs of the command line, one file each: ``run(options)`` returns the JSON document and its text."""

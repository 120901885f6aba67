"""The report: figures, and one self-contained HTML page that says what each layer of a network still knows of the image."""

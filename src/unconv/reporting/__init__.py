"""The report: figures, and one self-contained HTML page on what each layer still knows of the image."""

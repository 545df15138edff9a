"""HTML report of one or several runs in one file, readable offline.

`collect` reads the folders, `figures` creates Plotly figures, `page` writes the file.
"""

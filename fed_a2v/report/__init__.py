"""The report of one run, or of several side by side: one HTML file that needs no network.

`collect` reads the folders, `figures` draws with Plotly, `page` puts all into one file.
"""

"""Pages to look at: HTML and SVG without scripts or network.

page.py     a page: its frame, figures and tables
charts.py   small charts as SVG: bars and lines
report.py   the page of minibert evaluate --report
curves.py   the numbers behind its curves
marking.py  texts with answers marked
training.py the page of a training run
"""

"""Metrics of whole tasks: detection, segmentation, transcripts, features.

Each is a row of `quantize.metrics.METRICS`. A task's scoring function takes what every scoring
function takes (outputs, labels, reference outputs, name of the output or None) and returns one row
per sample; its second function makes a number, or one score per sample, of rows.

Where a model's raw outputs are not yet what a task talks about (a detector's grid, a recognizer's
logits), `--decode file.py:function` turns the outputs of one run into it.
"""

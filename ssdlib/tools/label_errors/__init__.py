"""Missing and doubtful labels: found by networks that never saw them, judged by a person, mended in a copy.

`folds` makes the predictions, `rank` compares them with the labels, `pages` shows what was found, `review`
takes decisions, `correct` applies them.
"""

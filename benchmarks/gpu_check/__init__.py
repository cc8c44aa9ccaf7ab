"""Evidence from a machine with a GPU, in less than nine minutes: ``python -m benchmarks.gpu_check [ITEM ...]``.

``items.py`` lists what runs, the most valuable first; ``runner.py`` runs each in a process with a limit of its own;
``report.py`` keeps one file of what happened, written anew after every item.
"""

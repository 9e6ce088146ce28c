"""The names of the files that stages pass on, below the working folder.

folds.csv  left_out.json  nih_left_out.json
runs/<run>/fold<k>/   config.json  log.jsonl  last.pt  best_epoch<n>.pt
                      oof.zip  oof_last.zip  test.zip
ensembles/<name>/     members.json  thresholds.json  oof.csv  oof_statistics.npz
                      oof_distances.csv  test.json  submission.csv  report.html  viewer.html
                      statistics/fold<k>.npz
                      search_kept.jsonl  search_last.jsonl, while the thresholds stage works
"""

from __future__ import annotations

FOLDS, LEFT_OUT, NIH_LEFT_OUT = "folds.csv", "left_out.json", "nih_left_out.json"

RUNS = "runs"
CONFIG, LOG, LAST = "config.json", "log.jsonl", "last.pt"
BEST = "best_epoch"  # and the epoch's number, of three digits at least
CHECKPOINT_SUFFIX = ".pt"
OOF, OOF_LAST, TEST_MAPS = "oof.zip", "oof_last.zip", "test.zip"

ENSEMBLES = "ensembles"
MEMBERS, THRESHOLDS = "members.json", "thresholds.json"
PER_IMAGE, STATISTICS, DISTANCES = "oof.csv", "oof_statistics.npz", "oof_distances.csv"
FOLD_STATISTICS = "statistics"  # a folder
SEARCH_KEPT, SEARCH_LAST = "search_kept.jsonl", "search_last.jsonl"
TEST_RUN, SUBMISSION = "test.json", "submission.csv"
REPORT, VIEWER = "report.html", "viewer.html"

PREDICTIONS = "predictions.csv"  # of `predict`, in a folder of the user's

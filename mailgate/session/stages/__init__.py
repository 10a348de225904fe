"""One file per stage, its running order last."""

"""The declaration of every key; keys are named here and nowhere else."""

"""Every model family, from a random checkpoint to logits: `python -m tests.families`, or `make families`.

cases       the families, and a configuration of each layout that a family has
checkpoint  a random checkpoint, as transformers saves it
reference   what transformers computes
conversion  packages of each format, by the commands of `o2o convert`
fusion      how many attentions of a model are one operator
check       one case: its packages on their engines, against transformers
results     results of cases, stored between runs
table       the table in the documentation
"""

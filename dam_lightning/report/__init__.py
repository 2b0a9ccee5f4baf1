"""The ledger beside the paper: ``python -m dam_lightning.report LEDGER``.

`paper` has the paper's figures and the commands of their runs, `commands` what a command says,
`rows` the ledger, `runs` which row is a run of which figure, `estimates` means and standard errors,
`page` the report and `queue` what is still to run.
"""

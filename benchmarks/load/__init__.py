"""Load on a webhook, and a destination that counts: processes of their own that cost little, so that a figure is
that of what is measured. `sender` makes the load, `sink` takes the deliveries; both keep ledgers."""

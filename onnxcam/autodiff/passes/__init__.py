"""What makes gradients fast and leaves them what they are, so that rules stay equations.

`expansions` rewrites emitted nodes after the sweep. `silu` replaces the rules of a group of nodes while it runs, and
`blocked_layout` holds the forms that rules and sweep call by name: they choose operators, and a pass that exchanged
them afterwards would rename every node behind them.
"""

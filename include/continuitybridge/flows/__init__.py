"""The flow language: `load` reads a flow from any format, `lint` finds what is wrong with it, `convert` writes it
in another format, `plan` compiles it to what the engine runs. `model` is what a flow is."""

"""Where runs run: each backend asks for nodes, watches them and takes them away."""

"""Other programs' requests, rendered: a body of ai-toolkit-inference's server, or a command line of sd-scripts."""

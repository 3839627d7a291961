"""Training jobs of AI Toolkit, as their folders tell them: what was asked for, what was rendered, what was saved."""

"""What is inside: the computation graph, and what one optimizer step really runs."""

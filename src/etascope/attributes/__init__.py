"""What modules and optimizers keep beside parameters, buffers and state_dicts.

A counter, a list of losses, a tensor handed from batch to batch: plain attributes change in a
forward pass, and neither a state_dict nor `torch.save` knows of them. What has changed since a
trial was built is part of its state (`kept.py`); what an evaluation changes is put back after it
(`untouched.py`). Both describe a value by its *portrait*: nested lists of plain values and tensors.
"""

"""Models that compute in processes of their own, so that a device that hangs or crashes takes nothing along.

wire      what the two sides say to each other: messages of a few bytes, tensors in shared memory
worker    the child: compiles one model, then answers
workers   the parent: starts children, waits no longer than a deadline, kills; a child's model as the port's Model
"""

"""What RunPod's queue asks of a worker, beyond the speech itself.

logs        every line of the log says which job it belongs to
answers     an error in the shape that RunPod reports; nothing that cannot be posted is posted
flight      which jobs have not been answered yet, and how the worker leaves without losing one
progress    how far a job is, told in order and never after its result
scaler      the SDK's take loop, mended where it could lose a job
posting     results, posted until the platform has them
mending     puts those two in their place
streaming   pieces of audio as items of a stream
jobs        the two handlers: one answer, or a stream
"""

"""Accuracy of attribute outputs, one entry at a time."""


def accuracy(outputs, values, mask):
    """Return the share of annotated entries that are told right."""
    right = [
        (output > 0) == (value == 1)
        for row in zip(outputs, values, mask, strict=True)
        for output, value, annotated in zip(*row, strict=True)
        if annotated
    ]
    return sum(right) / len(right)


def balanced_accuracy(outputs, values, mask):
    """Return the mean over attributes of the mean over their classes that occur."""
    attributes = []
    for m in range(len(values[0])):
        classes = []
        for wanted in (0, 1):
            members = [
                outputs[n][m] for n in range(len(values)) if mask[n][m] and values[n][m] == wanted
            ]  # outputs of the images of one class
            if members:
                classes.append(sum((output > 0) == (wanted == 1) for output in members) / len(members))
        if classes:
            attributes.append(sum(classes) / len(classes))
    return sum(attributes) / len(attributes)

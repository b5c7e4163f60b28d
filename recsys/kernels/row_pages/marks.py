"""Numbers with a meaning in the columns of rows."""

FREE = -1  # tick of a row that is no id's
MOST_COUNT = 2**31 - 1  # of touches: an int32; a count of so many stays

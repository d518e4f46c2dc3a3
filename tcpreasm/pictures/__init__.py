"""Pictures of captures: what the reassembly made of them, for people to look at.

    observed    what is shown: arrays of numbers, taken down while a capture is reassembled
    series      such arrays brought to the resolution of a picture
    plot        figures, by matplotlib (the extra `plot`)
    report      a page of HTML that needs nothing else

Everything in them is the reassembly's own account: which bytes a segment brought that were new, repeated or early, when they went out,
what was given up as missing. Nothing here decides anything about TCP.
"""

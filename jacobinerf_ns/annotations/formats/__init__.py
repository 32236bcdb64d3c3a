"""Label files of other tools, out and in: index PNGs, COCO, LabelMe."""

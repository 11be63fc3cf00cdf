"""Model classes that SGLang's registry finds here (each module offers `EntryClass`)."""

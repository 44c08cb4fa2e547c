"""Every page, plot and template of the product. The modules take frames and dicts, know no SQL, and import no stage."""

"""Where requests come from: readers of public formats, shaping, synthetic families, what is shipped, a writer."""

from optimizer.traces.embedded import Listed as Listed
from optimizer.traces.embedded import embedded as embedded
from optimizer.traces.embedded import embedded_names as embedded_names
from optimizer.traces.embedded import instance as instance
from optimizer.traces.embedded import list_instances as list_instances
from optimizer.traces.embedded import listed_instances as listed_instances
from optimizer.traces.embedded import near_shipped as near_shipped
from optimizer.traces.formats import FORMATS as FORMATS
from optimizer.traces.formats import detect_format as detect_format
from optimizer.traces.formats import read_trace as read_trace
from optimizer.traces.generators import families as families
from optimizer.traces.generators import family_options as family_options
from optimizer.traces.generators import generate as generate
from optimizer.traces.shape import clip_lengths as clip_lengths
from optimizer.traces.shape import draw_arrivals as draw_arrivals
from optimizer.traces.shape import only_tenants as only_tenants
from optimizer.traces.shape import scale_time as scale_time
from optimizer.traces.shape import spread_ticks as spread_ticks
from optimizer.traces.shape import to_rate as to_rate
from optimizer.traces.shape import window as window
from optimizer.traces.trace import Trace as Trace
from optimizer.traces.write import write_csv as write_csv

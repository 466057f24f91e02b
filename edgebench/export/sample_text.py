"""Sentences of our own, for timing inputs where no data are given.

Plain English prose about measuring things, in ordinary lengths, so that token ids and the spread of
word pieces are those of real text. Each sentence is one text; rows are filled by joining
successive ones.
"""

from __future__ import annotations

import re

_PROSE = """
The kettle on the windowsill took four minutes to boil, and nobody thought to write down how full
it was. A small computer on the roof counts the cars that pass and sends one number to the office
every hour. She weighed the parcel twice because the first reading had drifted while the scale was
still cold. Two clocks that agree at noon may differ by midnight, and neither of them will tell you
which is right. The bridge carries forty trains a day, although the engineers who drew it expected
no more than ten. Rain fell through the night, and by morning the gauge beside the barn had
overflowed into the grass. If the fan starts to turn before the test is over, the second half of
the figures belongs to another machine. The farmers asked for a cheap sensor that would last a
winter outdoors without anyone looking after it. An old rule in the workshop says that a tool you
cannot find within a minute is a tool you do not own. He translated the letter slowly, word by
word, and left a pencil mark wherever he had guessed. The museum keeps its oldest map in the dark,
and visitors see a copy that was drawn last year. Every translation loses something, but a careful
one says in a footnote what it had to leave behind. The battery was rated for two days; in the cold
of the hut it was empty before the second breakfast. Three of the five runners finished within a
second of each other, which the crowd took for a draw. The price of copper rose again this week,
and the electricians have begun to quote by the day. A river gauge, a notebook and a good pair of
boots were all the equipment that the survey could afford. The choir rehearses on Tuesdays in the
school hall, where the heating fails about once a month. When the network is slow the shop writes
its orders on paper and types them in after closing time. The committee met for six hours and
agreed on the date of its next meeting and on very little else. Nobody had calibrated the
thermometer since the spring, so the records of that summer were thrown away. The new tram line
opens in May, a year late, with half the stops that the first plan had promised. A model that
answers in a tenth of a second feels instant; at a full second people begin to look away. The baker
measures flour by weight and time by the smell that comes through the open oven door. On the third
attempt the rocket left the pad, turned gently to the east, and disappeared into the cloud. The
library lends out umbrellas as well as books, and loses rather more of the umbrellas. Engineers
learned to distrust the first number of the day, for the machine was never quite warm. The film was
shot in nine days with borrowed cameras and won a prize that none of its makers had heard of. Her
grandmother kept the accounts of the mill in a ledger that balanced to the penny for thirty years.
The goalkeeper guessed correctly and dived to the left, but the ball struck the post and came back
out. A phone in a warm pocket thinks more slowly than the same phone on a stone floor in January.
The ministry published the figures late on a Friday, which is when such figures are usually
published. To cross the strait in winter you need a strong boat, a patient crew and a forecast that
you believe. The printer hums for a minute before the first page, and that minute is missing from
the brochure. Students who wrote their notes by hand remembered fewer words of the lecture but more
of its argument. The valley has one doctor, two pharmacies and a helicopter that comes when the
road is closed by snow. Half of the orchard was planted with a variety that nobody grows any more,
and it is the better half. The court decided that the contract was valid, although neither side had
read the last four pages. An average hides the worst morning of the month, and it is the worst
morning that people remember. The violin was repaired with glue made from the same recipe that its
maker used three centuries ago. Their first product was a lamp that could be read by for a week on
one charge of its battery. The referee looked at his watch, at the sky and at the empty stand, and
called the match off. Sound travels faster through the rails than through the air, so the children
heard the train twice. The translation software was trained on newspapers and is at a loss when it
meets a recipe or a poem. He bought the cheapest meter in the shop and spent the rest of the year
wondering what it measured. The company moved its servers north, where the air is cold for nothing
during most of the year. A good experiment can fail, and the record of how it failed is worth more
than a vague success. The ferry carried bicycles, bread and newspapers, and on Sundays the only
priest on the islands. The report runs to four hundred pages, of which the appendix with the raw
data is the most honest. The satellite passes over the farm every five days and sees at once which
field is short of water. They painted the lighthouse white again, as they had done every seventh
summer since it was built. The actor forgot his line, paused as if in thought, and received the
longest applause of the evening. The watchmaker sets each movement in six positions, because a
watch that lies flat keeps another time. An update was installed overnight, and in the morning
every machine in the building was a little slower. The harvest was good, the price was bad, and the
bank was patient for one more year. Wind had pushed the sand over the road again, and the bus
turned back where the asphalt ended. The singer records at night, when the street is quiet enough
for the old microphone to be of use. To compare two engines fairly you run them on the same day, on
the same fuel, one after the other. The children built a dam of stones across the stream and were
proud of it until the first rain. A note in the margin, in another hand, says that the measurement
was repeated and came out the same. The airline cancelled the flight, offered a voucher, and sold
the seats on the next one twice. The chess player took eleven minutes over a move that everyone in
the hall had already seen. Every spring the river moves its bed by a few steps, and the border
between two farms moves with it. The radio drama was recorded in a kitchen, and the storm at its
climax is a tray of dried peas. What cannot be measured can still be described, as long as nobody
later mistakes one for the other. The translator of the manual had plainly never held the saw that
he was writing about. A single loose cable in the rack had cost the laboratory three weeks and a
good deal of sleep.
"""

TEXTS: tuple[str, ...] = tuple(" ".join(s.split()) for s in re.findall(r"[^.]+\.", _PROSE))

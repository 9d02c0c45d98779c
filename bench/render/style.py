"""The style sheet of the HTML report. Stripped, the page is still readable and in order."""

from bench.render.shapes import PALETTE

_RULES = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
.page{max-width:70rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
h1,h2,h3,p,ul,ol,dl,dd,figure{margin:0;padding:0}
h1{font-size:1rem;font-weight:600;line-height:1.4;color:var(--muted);margin-bottom:1rem}
h2{font-size:1.3rem;font-weight:650;line-height:1.3;letter-spacing:-.01em;margin-bottom:1rem}
section{margin-top:3rem;padding-top:1.75rem;border-top:1px solid var(--rule)}
section>p{max-width:44rem;margin-bottom:1rem}
a{color:var(--info);text-underline-offset:.15em}
:focus-visible{outline:2px solid var(--info);outline-offset:2px;border-radius:2px}
.verdict{--tone:var(--info);background:var(--card);border:1px solid var(--rule);
border-left:6px solid var(--tone);border-radius:10px;padding:1.75rem 2rem 1.5rem}
.verdict .word{display:inline-flex;align-items:center;gap:.5rem;color:var(--tone);font-weight:700;
font-size:.875rem;letter-spacing:.08em;text-transform:uppercase}
.headline{font-size:clamp(1.35rem,1rem + 1.6vw,2rem);font-weight:650;line-height:1.22;
letter-spacing:-.018em;margin:.35rem 0 .6rem;max-width:50rem;text-wrap:balance}
.verdict ul{list-style:none;max-width:48rem;color:var(--muted)}
.verdict li{margin-top:.25rem}
.key{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,9.5rem),1fr));
gap:1.25rem 1.5rem;margin-top:1.5rem;padding-top:1.25rem;border-top:1px solid var(--rule)}
@media screen and (min-width:40rem){.key:has(>:nth-child(6):last-child){
grid-template-columns:repeat(3,1fr)}}
.key div{display:flex;flex-direction:column}
.key dt{font-size:.8125rem;color:var(--muted)}
.key .value{font-size:1.5rem;font-weight:650;line-height:1.25;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.key .note{font-size:.8125rem;color:var(--muted)}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));
gap:1.5rem 2.5rem;align-items:start;margin-top:1.5rem;padding-top:1.25rem;
border-top:1px solid var(--rule)}
nav{margin-top:1.75rem;font-size:.9375rem}
nav ol{list-style:none;display:flex;flex-wrap:wrap;gap:.4rem 1.5rem}
nav strong{display:block;font-size:.8125rem;font-weight:600;color:var(--muted);margin-bottom:.35rem}
.pass{--tone:var(--pass)}.fail,.refuse,.error,p.warning{--tone:var(--warning)}
.inconclusive{--tone:var(--inconclusive)}.info,p.note{--tone:var(--info)}.skipped{--tone:var(--muted)}
.badge{color:var(--tone);font-weight:600;white-space:nowrap}
p.note,p.warning{padding:.6rem .9rem;border-left:4px solid var(--tone);background:var(--card);
border-radius:0 6px 6px 0}
p.note strong,p.warning strong{color:var(--tone)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));
gap:2.25rem 3rem;align-items:start;margin:1.25rem 0 1.75rem}
figure{max-width:33rem;min-width:0}
figcaption{margin-bottom:.75rem}
figcaption strong{font-weight:600;line-height:1.35}
figcaption span{font-size:.875rem;color:var(--muted)}
svg{display:block;width:100%;height:auto;overflow:visible}
details{margin-top:.6rem}
figcaption+svg+details{margin-top:.35rem}
summary{cursor:pointer;font-size:.8125rem;color:var(--muted);width:max-content;max-width:100%}
.scroll{overflow-x:auto;margin:1.25rem 0 1.5rem;max-width:100%;
background:linear-gradient(90deg,var(--paper) 30%,transparent) left/2rem 100% no-repeat local,
linear-gradient(270deg,var(--paper) 30%,transparent) right/2rem 100% no-repeat local,
linear-gradient(90deg,var(--rule),transparent) left/.6rem 100% no-repeat scroll,
linear-gradient(270deg,var(--rule),transparent) right/.6rem 100% no-repeat scroll}
details .scroll{margin:.5rem 0 0}
table{border-collapse:collapse;font-size:.875rem;line-height:1.45;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
caption{text-align:left;font-weight:600;font-size:1rem;padding-bottom:.5rem}
details caption{font-size:.8125rem}
th,td{padding:.42rem 1.1rem .42rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:.25rem}
thead th{font-weight:600;font-size:.8125rem;color:var(--muted);border-bottom-color:var(--axis);
vertical-align:bottom}
tbody th{font-weight:500}
th,td{max-width:26rem}
td:last-child{max-width:40rem}
.r{text-align:right;white-space:nowrap;padding-left:.5rem}
td.p{min-width:15rem}
.full{width:100%}
.small{font-size:.8125rem;color:var(--muted)}
.checks td:nth-child(3){min-width:14rem;max-width:none;width:100%}
.checks tbody th{min-width:7rem;overflow-wrap:anywhere}
pre{margin:.4rem 0 0;white-space:pre-wrap;font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,
Consolas,"Liberation Mono",monospace;color:var(--muted)}
[title]{text-decoration:underline dotted var(--axis);text-underline-offset:.2em;cursor:help}
footer{margin-top:3.5rem;padding-top:1.25rem;border-top:1px solid var(--rule);font-size:.8125rem;
color:var(--muted)}
footer p{margin-top:.15rem}
@media (max-width:40rem){
.page{padding:1.25rem 1rem 3rem}
.verdict{padding:1.25rem 1.1rem 1.1rem}
.key{grid-template-columns:1fr 1fr;gap:1.1rem 1.25rem}
.key .value{font-size:1.4rem}
section{margin-top:2.25rem;padding-top:1.4rem}
th,td{padding-right:.8rem}
tbody th{max-width:12rem;overflow-wrap:break-word}
tbody th.p{min-width:9rem;overflow-wrap:anywhere}
.checks tbody th{min-width:5rem;max-width:7rem}
.checks td:nth-child(3){min-width:9rem}
}
@media print{
@page{margin:16mm 14mm}
html{font-size:10pt}
.page{padding:0;max-width:none}
nav,summary{display:none}
.verdict,figure,tr,pre{break-inside:avoid}
.verdict,p.note,p.warning,svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.figures{grid-template-columns:1fr 1fr;gap:7mm 8mm}
.wide{overflow-wrap:anywhere;font-size:7pt}
.wide .r{white-space:normal}
tbody th{min-width:5rem;overflow-wrap:anywhere}
th,td{padding-right:.7em}
h2,figcaption,caption,thead{break-after:avoid}
thead{display:table-header-group}
section{margin-top:8mm;padding-top:5mm}
.key{grid-template-columns:repeat(4,1fr);gap:5mm}
.scroll{overflow:visible;background:none}
a{color:inherit;text-decoration:none}
}
"""


def style_sheet() -> str:
    """The whole sheet, colours from the palette of the figures."""
    light, dark = (
        "".join(f"--{role}:{pair[i]};" for role, pair in PALETTE.items()) for i in range(2)
    )
    classes = "".join(
        f".f-{role}{{fill:var(--{role})}}.s-{role}{{stroke:var(--{role})}}" for role in PALETTE
    )
    # A screen only: paper is white.
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"{classes}.halo{{stroke:var(--paper)}}{_RULES}"
    ).replace("\n", "")

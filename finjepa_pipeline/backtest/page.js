const dark=matchMedia('(prefers-color-scheme:dark)');
const plotly=(async()=>{const b=atob(document.getElementById('plotly').textContent.trim());
const bytes=Uint8Array.from(b,c=>c.charCodeAt(0));
const text=await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
const s=document.createElement('script');s.text=text;document.head.append(s)})();
async function draw(div){await plotly;const f=FIGURES[div.id];const ink=dark.matches?'#c9d1d9':'#3d444d';
const grid=dark.matches?'#2b323a':'#e3e7eb';const small=innerWidth<640;
const wanted=small?f.data.filter(t=>t.visible!=='legendonly'):f.data;const data=wanted.map(t=>{const c={...t};if(c.dates){c.x=DATES[c.dates];delete c.dates}return c});
const named=a=>typeof (a||{}).title==='string'?{...a,title:{text:a.title}}:a||{};
const axis={gridcolor:grid,zerolinecolor:grid,automargin:true};
const layout={height:small?360:420,margin:{l:small?44:60,r:10,t:16,b:36},paper_bgcolor:'rgba(0,0,0,0)',plot_bgcolor:'rgba(0,0,0,0)',
font:{color:ink,size:small?11:12},hovermode:f.layout.hovermode||'x unified',
legend:{orientation:'h',y:-.18},...f.layout,xaxis:{...axis,...named(f.layout.xaxis)},yaxis:{...axis,...named(f.layout.yaxis)}};
if(layout.yaxis2)layout.yaxis2=named(layout.yaxis2);
Plotly.react(div,data,layout,{responsive:true,displayModeBar:false})}
const seen=new IntersectionObserver(es=>es.forEach(e=>{if(e.isIntersecting){seen.unobserve(e.target);draw(e.target)}}),{rootMargin:'600px'});
const divs=[...document.querySelectorAll('.figure')];divs.forEach(d=>seen.observe(d));
dark.addEventListener('change',()=>divs.filter(d=>d.data).forEach(draw));
